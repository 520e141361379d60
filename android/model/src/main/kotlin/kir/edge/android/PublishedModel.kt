package kir.edge.android

import java.io.File
import java.security.MessageDigest
import kir.edge.core.FeatureSpec
import kir.edge.core.KirException
import kir.edge.core.ListReward
import kir.edge.core.Model
import org.json.JSONArray
import org.json.JSONObject

/** A graph's input or output: float32, its static shape flattened to [size] numbers. */
class TensorContract(val name: String, val shape: List<Int>) {
    val size: Int = shape.fold(1) { product, n -> product * n }
}

/** One graph of one size bucket, with the file and the tolerance of the variant that ships. */
class GraphContract(
    val name: String,
    val bucket: String,
    val inputs: List<TensorContract>,
    val outputs: List<TensorContract>,
    val file: String,
    val tolerance: Double,
)

/**
 * A version directory as `kir publish` writes it: manifest.json and files named by their hash, each checked when it is
 * read. Whoever downloads it checks the manifest itself against the signed pointer (docs/delivery.md).
 */
class PublishedModel private constructor(private val folder: File, private val manifest: JSONObject) {
    val denseVersion: String = manifest.getString("dense_version")

    /** Every graph, in the manifest's order. */
    val graphs: List<GraphContract> = manifest.getJSONArray("graphs").objects().map(::graph)

    /** "swipe/N24" to its golden tensors' file. */
    val goldenTensors: Map<String, String> = manifest.getJSONObject("golden").getJSONObject("tensors").strings()

    /** The golden session's file, "" without one. */
    val goldenSession: String = manifest.getJSONObject("golden").getString("session")

    /** Sum of |fusion weights|: what an error of a probability can do to a value. */
    val fusionSum: Double = fusion().values.sumOf { Math.abs(it) }

    /** Sum of |list_reward weights|, 0 without one. */
    val rewardSum: Double
        get() = manifest.optJSONObject("list_reward")?.getJSONObject("value")?.doubles()?.values?.sumOf { Math.abs(it) } ?: 0.0

    /** Largest difference that rounding makes to a session's scores; infinite where the manifest does not tell. */
    val sessionToFloatWhole: Double =
        manifest.optJSONObject("verification")?.optJSONObject("session_to_float_whole")
            ?.optDouble("scores_max_abs", Double.POSITIVE_INFINITY) ?: Double.POSITIVE_INFINITY

    /** A graph by name and bucket. Raises KirException. */
    fun graph(name: String, bucket: String): GraphContract =
        graphs.firstOrNull { it.name == name && it.bucket == bucket }
            ?: throw KirException("no such graph", denseVersion, "$name/$bucket", null, null)

    /** A file's bytes, of the published size and hash. Raises KirException naming the file. */
    fun read(file: String): ByteArray {
        val entry = manifest.getJSONObject("files").optJSONObject(file)
            ?: throw KirException("the manifest lists no such file", denseVersion, file, null, null)
        val path = path(file)
        if (!path.isFile) throw KirException("file of the model is not here", denseVersion, file, null, "import it again")
        val content = path.readBytes()
        val sha256 = MessageDigest.getInstance("SHA-256").digest(content).joinToString("") { "%02x".format(it) }
        if (content.size.toLong() != entry.getLong("n_bytes") || sha256 != entry.getString("sha256")) {
            throw KirException("file is not the one that was published", "$denseVersion/$file", sha256, null, "import it again")
        }
        return content
    }

    /** Where a file lies; names are hashes, so that none leads out of the folder. */
    fun path(file: String): File {
        if (!SAFE_NAME.matches(file)) throw KirException("not a plain file name", file, null)
        return folder.resolve(file)
    }

    /** What a swipe needs of the manifest. Raises KirException for a model that no phone can run. */
    fun model(): Model {
        val capacities = manifest.getJSONObject("capacities")
        val fusion = fusion()
        val model = Model()
        model.denseVersion = denseVersion
        model.spec = spec()
        model.tasks = manifest.getJSONArray("tasks").strings()
        model.fusion = FloatArray(model.tasks.size) { (fusion[model.tasks[it]] ?: 0.0).toFloat() }
        model.listReward = manifest.optJSONObject("list_reward")?.let {
            ListReward(model.tasks, it.getJSONObject("value").doubles(), it.getString("survival"))
        }
        model.capacity = capacities.getInt("L")
        model.beams = capacities.optInt("k", 0)
        model.placed = capacities.optInt("P", 0)
        model.buckets = buckets("swipe")
        model.watchBuckets = buckets("watch")
        model.hasPlace = buckets("place").contentEquals(model.buckets)
        val past = graph("watch", "T${model.watchBuckets[0]}").inputs.firstOrNull { it.name == "past" }
        model.planes = past?.shape?.get(1) ?: 0
        model.width = past?.shape?.get(3) ?: 0
        model.memoryWidth = graph("swipe", "N${model.buckets[0]}").inputs.first { it.name == "memory" }.shape[2]
        return model.check()
    }

    private fun fusion(): Map<String, Double> = manifest.getJSONObject("fusion").doubles()

    private fun buckets(name: String): IntArray =
        graphs.filter { it.name == name }.map { it.bucket.drop(1).toInt() }.sorted().toIntArray()

    private fun spec(): FeatureSpec {
        val fields = manifest.getJSONObject("spec").getJSONArray("fields").objects().map {
            FeatureSpec.Field(
                it.getString("name"),
                it.getString("feature"),
                it.getString("block"),
                it.getInt("width"),
                it.getString("table"),
                it.getInt("max_len"),
            )
        }
        return FeatureSpec(manifest.getString("spec_fingerprint"), fields)
    }

    companion object {
        private const val FORMAT = "kir-model/1"
        private val SAFE_NAME = Regex("[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

        /** A folder with manifest.json. Raises KirException for another format. */
        fun open(folder: File): PublishedModel {
            val file = folder.resolve("manifest.json")
            if (!file.isFile) {
                throw KirException("no published model here", folder.path, null, null, "gradlew importModel -Pmodel=DIR")
            }
            val manifest = JSONObject(file.readText())
            if (manifest.optString("format") != FORMAT) {
                throw KirException("another manifest format", folder.path, manifest.optString("format"), FORMAT, null)
            }
            return PublishedModel(folder, manifest)
        }

        private fun graph(data: JSONObject): GraphContract {
            val variant = data.getJSONArray("variants").objects().first { it.getString("name") == data.getString("ship") }
            return GraphContract(
                data.getString("name"),
                data.getString("bucket"),
                tensors(data.getJSONArray("inputs")),
                tensors(data.getJSONArray("outputs")),
                variant.getString("file"),
                variant.getDouble("tolerance"),
            )
        }

        private fun tensors(data: JSONArray): List<TensorContract> = data.objects().map { tensor ->
            val shape = tensor.getJSONArray("shape")
            TensorContract(tensor.getString("name"), (0 until shape.length()).map { shape.getInt(it) })
        }
    }
}

internal fun JSONArray.objects(): List<JSONObject> = (0 until length()).map { getJSONObject(it) }

internal fun JSONArray.strings(): List<String> = (0 until length()).map { getString(it) }

internal fun JSONObject.strings(): Map<String, String> = keys().asSequence().associateWith { getString(it) }

internal fun JSONObject.doubles(): Map<String, Double> = keys().asSequence().associateWith { getDouble(it) }
