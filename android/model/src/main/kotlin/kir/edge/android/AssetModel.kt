package kir.edge.android

import android.content.Context
import android.content.res.AssetManager
import java.io.File

/** A published model that `importModel` put into a test APK's assets, copied to where LiteRT can map it. */
object AssetModel {
    private const val FOLDER = "model"

    /** assets: of the APK that holds the model; context: of the app, whose cache takes the copy. Raises KirException. */
    fun unpack(assets: AssetManager, context: Context): PublishedModel {
        val target = File(context.cacheDir, FOLDER)
        target.deleteRecursively()
        target.mkdirs()
        for (name in assets.list(FOLDER).orEmpty()) {
            assets.open("$FOLDER/$name").use { source ->
                target.resolve(name).outputStream().use { source.copyTo(it) }
            }
        }
        return PublishedModel.open(target)
    }
}
