package kir.edge.benchmark

import android.util.Base64
import androidx.benchmark.junit4.BenchmarkRule
import androidx.benchmark.junit4.measureRepeated
import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import kir.edge.android.AssetModel
import kir.edge.android.LiteRtGraphs
import kir.edge.android.PublishedModel
import kir.edge.core.ChoicePolicy
import kir.edge.core.Clock
import kir.edge.core.DeviceState
import kir.edge.core.Feedback
import kir.edge.core.PoolConfig
import kir.edge.core.SwipeSession
import kir.edge.pages.PageDecoder
import org.json.JSONObject
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Before
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith

/** Time of what a user waits for: one choice among a page's candidates (features, graph, fusion, choice). */
@RunWith(AndroidJUnit4::class)
class SwipeBenchmark : Clock {
    @get:Rule
    val benchmark = BenchmarkRule()

    private lateinit var published: PublishedModel
    private lateinit var graphs: LiteRtGraphs
    private lateinit var pageBytes: ByteArray
    private var atMs = 0L

    override fun monotonicMs(): Long = atMs

    override fun nowMs(): Long = atMs

    @Before
    fun open() {
        val instrumentation = InstrumentationRegistry.getInstrumentation()
        published = AssetModel.unpack(instrumentation.context.assets, instrumentation.targetContext)
        graphs = LiteRtGraphs(published)
        val steps = JSONObject(String(published.read(published.goldenSession))).getJSONArray("steps")
        val step = (0 until steps.length()).map { steps.getJSONObject(it) }.first { it.getString("kind") == "page" }
        pageBytes = Base64.decode(step.getString("page"), Base64.DEFAULT)
        atMs = step.getLong("at_ms")
    }

    @After
    fun close() {
        graphs.close()
    }

    private fun session(): SwipeSession {
        val session = SwipeSession(published.model(), graphs, this, PoolConfig(), ChoicePolicy())
        assertEquals("", session.onPage(PageDecoder.decode(pageBytes), LongArray(0)))
        return session
    }

    @Test
    fun decide() {
        val session = session()
        assertEquals("model", session.decide(DeviceState.UNKNOWN).chooser)
        benchmark.measureRepeated { session.decide(DeviceState.UNKNOWN) }
    }

    @Test
    fun openPage() {
        benchmark.measureRepeated {
            runWithMeasurementDisabled { atMs += 1 }
            session()
        }
    }

    @Test
    fun feedback() {
        val session = session()
        val shown = session.next(DeviceState.UNKNOWN)
        var revision = 0
        benchmark.measureRepeated {
            val feedback = Feedback(shown.videoId)
            feedback.revision = revision++
            feedback.playTimeMs = 7_000L + revision % 1_000
            session.feedback(feedback)
        }
    }
}
