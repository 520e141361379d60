package kir.edge.app

import android.app.Activity
import android.os.Bundle
import android.widget.TextView
import java.io.File
import kir.edge.android.GoldenReplay
import kir.edge.android.LiteRtGraphs
import kir.edge.android.PublishedModel
import kotlin.concurrent.thread

/**
 * Replays the golden cases of the model that lies in the app's external files, and shows every line.
 *
 * adb push VERSION_DIR/. /sdcard/Android/data/kir.edge.app/files/model/
 */
class MainActivity : Activity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val text = TextView(this)
        setContentView(text)
        val folder = File(getExternalFilesDir(null), "model")
        thread(name = "replay") {
            val report = runCatching { replay(folder) }.getOrElse { it.toString() }
            runOnUiThread { text.text = report }
        }
    }

    private fun replay(folder: File): String {
        val published = PublishedModel.open(folder)
        return LiteRtGraphs(published).use { graphs ->
            val replay = GoldenReplay(published, graphs)
            val lines = replay.tensors() + replay.session()
            "${published.denseVersion}\n${lines.joinToString("\n")}"
        }
    }
}
