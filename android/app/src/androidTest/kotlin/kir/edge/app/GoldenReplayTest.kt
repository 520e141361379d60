package kir.edge.app

import android.os.Build
import android.os.Bundle
import android.system.Os
import android.system.OsConstants
import android.util.Log
import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import kir.edge.android.AssetModel
import kir.edge.android.GoldenReplay
import kir.edge.android.LiteRtGraphs
import kir.edge.android.PublishedModel
import kir.edge.android.ReplayLine
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith

/** The imported model on this device: its golden tensors and its golden session. Lines go to logcat, tag "kir". */
@RunWith(AndroidJUnit4::class)
class GoldenReplayTest {
    private lateinit var published: PublishedModel
    private lateinit var graphs: LiteRtGraphs

    @Before
    fun open() {
        val instrumentation = InstrumentationRegistry.getInstrumentation()
        published = AssetModel.unpack(instrumentation.context.assets, instrumentation.targetContext)
        graphs = LiteRtGraphs(published)
    }

    @After
    fun close() {
        graphs.close()
    }

    @Test
    fun everyGraphGivesItsGoldenTensors() {
        val lines = GoldenReplay(published, graphs).tensors()
        report("tensors", lines)
        assertTrue("no golden tensors", lines.size >= published.goldenTensors.size && lines.isNotEmpty())
        assertEquals(emptyList<String>(), lines.filter { it.problem.isNotEmpty() }.map { it.toString() })
    }

    @Test
    fun theGoldenSessionEndsInTheSameChoices() {
        val lines = GoldenReplay(published, graphs).session()
        report("session", lines)
        assertTrue("no golden swipes", lines.isNotEmpty())
        assertEquals(emptyList<String>(), lines.filter { it.problem.isNotEmpty() }.map { it.toString() })
    }

    /** To logcat, and to the instrumentation's own output, which every runner keeps. */
    private fun report(name: String, lines: List<ReplayLine>) {
        val page = Os.sysconf(OsConstants._SC_PAGESIZE)
        val head = "${published.denseVersion} ${Build.FINGERPRINT} ${Build.SUPPORTED_ABIS.joinToString()} page $page"
        Log.i("kir", "$name $head")
        lines.forEach { Log.i("kir", it.toString()) }
        val status = Bundle()
        status.putString("kir_$name", "$head\n${lines.joinToString("\n")}")
        InstrumentationRegistry.getInstrumentation().sendStatus(0, status)
    }
}
