package kir.edge.benchmark

import androidx.benchmark.junit4.BenchmarkRule
import androidx.benchmark.junit4.measureRepeated
import androidx.test.platform.app.InstrumentationRegistry
import kir.edge.android.AssetModel
import kir.edge.android.GoldenReplay
import kir.edge.android.LiteRtGraphs
import kir.edge.android.PublishedModel
import kir.edge.core.Npz
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Before
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.junit.runners.Parameterized

/** Time of one run of each graph that a swipe waits for, buffers written and read; the golden cases are held first. */
@RunWith(Parameterized::class)
class GraphBenchmark(private val name: String) {
    @get:Rule
    val benchmark = BenchmarkRule()

    private lateinit var published: PublishedModel
    private lateinit var graphs: LiteRtGraphs

    @Before
    fun open() {
        val instrumentation = InstrumentationRegistry.getInstrumentation()
        published = AssetModel.unpack(instrumentation.context.assets, instrumentation.targetContext)
        graphs = LiteRtGraphs(published)
        val wrong = GoldenReplay(published, graphs).tensors().filter { it.problem.isNotEmpty() }
        assertEquals("a wrong answer has no speed", emptyList<String>(), wrong.map { it.toString() })
    }

    @After
    fun close() {
        graphs.close()
    }

    @Test
    fun run() {
        val contract = published.graphs.filter { it.name == name }.maxBy { it.bucket.drop(1).toInt() }
        val bucket = if (name == "watch") "T1" else contract.bucket
        val graph = published.graph(name, bucket)
        val arrays = Npz(published.read(published.goldenTensors.getValue("$name/$bucket")))
        val inputs = graph.inputs.associate { it.name to arrays.floats(it.name).copyOf(it.size) }
        benchmark.measureRepeated { graphs.run(name, bucket, inputs) }
    }

    companion object {
        @JvmStatic
        @Parameterized.Parameters(name = "{0}")
        fun names(): List<String> = listOf("page", "watch", "swipe", "place")
    }
}
