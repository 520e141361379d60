package kir.edge.android

import android.util.Base64
import kir.edge.core.BeamPlan
import kir.edge.core.Choice
import kir.edge.core.ChoicePolicy
import kir.edge.core.Clock
import kir.edge.core.DeviceState
import kir.edge.core.Feedback
import kir.edge.core.Fusion
import kir.edge.core.Graphs
import kir.edge.core.Npz
import kir.edge.core.PoolConfig
import kir.edge.core.SwipeSession
import kir.edge.pages.PageDecoder
import org.json.JSONObject

/** What a session of float arithmetic may differ by, whatever it costs to round. */
private const val STEADY = 1e-4

/** One case. maxAbs: largest difference to the golden output; problem: "" when it passed. */
class ReplayLine(val case: String, val maxAbs: Double, val tolerance: Double, val problem: String) {
    override fun toString(): String = "%-28s %9.2e %9.2e %s".format(case, maxAbs, tolerance, problem.ifEmpty { "ok" })
}

/**
 * Replay of a model's golden cases, as `kir replay` does it on the host (edge/_replay.py): outputs within the shipped
 * variant's tolerance, rankings equal except for ties below it, choices equal.
 */
class GoldenReplay(private val published: PublishedModel, private val graphs: Graphs) {
    private val model = published.model()

    /** Every case of every graph's golden tensors. */
    fun tensors(): List<ReplayLine> = published.goldenTensors.entries.sortedBy { it.key }.flatMap { (key, file) ->
        val (name, bucket) = key.split("/")
        val contract = published.graph(name, bucket)
        val arrays = Npz(published.read(file))
        val first = contract.inputs.first()
        val cases = arrays.floats(first.name).size / first.size
        (0 until cases).map { case ->
            fun of(tensor: TensorContract): FloatArray =
                arrays.floats(tensor.name).copyOfRange(case * tensor.size, (case + 1) * tensor.size)
            val got = graphs.run(name, bucket, contract.inputs.associate { it.name to of(it) })
            val label = if (case == 0) key else "$key #${case + 1}"
            compare(label, contract, contract.outputs.associate { it.name to of(it) }, got)
        }
    }

    private fun compare(
        label: String,
        contract: GraphContract,
        expected: Map<String, FloatArray>,
        got: Map<String, FloatArray>,
    ): ReplayLine {
        val maxAbs = expected.maxOf { (name, value) -> maxAbs(value, got.getValue(name)) }
        var problem = if (maxAbs <= contract.tolerance) "" else "outputs differ"
        val scores = expected["scores"]
        if (scores != null && problem.isEmpty()) {
            val want = Fusion.values(scores, model.fusion)
            val have = Fusion.values(got.getValue("scores"), model.fusion)
            if (!Fusion.rankingsAgree(want, have, valueTolerance(contract.tolerance))) problem = "ranking differs"
        }
        return ReplayLine(label, maxAbs, contract.tolerance, problem)
    }

    /** The golden session, up to its first step that differs. org.json reads ids below 2**63. */
    fun session(): List<ReplayLine> {
        val golden = JSONObject(String(published.read(published.goldenSession)))
        check(golden.getString("format") == "kir-golden-session/1") { "another golden session format" }
        val phone = Phone()
        val lines = ArrayList<ReplayLine>()
        for ((number, step) in golden.getJSONArray("steps").objects().withIndex()) {
            val line = phone.take(step, "session step ${number + 1} (${step.getString("kind")})") ?: continue
            lines += line
            if (line.problem.isNotEmpty()) break // whatever follows would only repeat it
        }
        return lines
    }

    /** A session driven by golden steps; it shows what the golden one showed, so that a tie does not fork them. */
    private inner class Phone : Clock {
        private var atMs = 0L
        private val session = SwipeSession(model, graphs, this, PoolConfig(), ChoicePolicy())

        // Three graphs in a row, and no more than rounding costs a whole session (edge/_replay.py).
        private val tolerance =
            minOf(3 * shipped("page", "watch", "swipe"), maxOf(STEADY, published.sessionToFloatWhole))

        override fun monotonicMs(): Long = atMs

        override fun nowMs(): Long = atMs

        fun take(step: JSONObject, case: String): ReplayLine? {
            atMs = step.getLong("at_ms")
            return when (step.getString("kind")) {
                "page" -> page(step, case)
                "feedback" -> feedback(step)
                else -> swipe(step, case)
            }
        }

        private fun page(step: JSONObject, case: String): ReplayLine? {
            session.pool().clear() // a golden swipe chooses from the last page, shown before or not
            val page = PageDecoder.decode(Base64.decode(step.getString("page"), Base64.DEFAULT))
            val reason = session.onPage(page, LongArray(0))
            return if (reason.isEmpty()) null else ReplayLine(case, 0.0, 0.0, "page can't be scored: $reason")
        }

        private fun feedback(step: JSONObject): ReplayLine? {
            val feedback = Feedback(step.getLong("video_id"))
            feedback.shownAtMs = step.getLong("shown_at_ms")
            feedback.playTimeMs = step.getLong("play_time_ms")
            val signals = step.getJSONObject("signals")
            for (name in signals.keys()) {
                if (signals.getInt(name) >= 0) feedback.signals[name] = signals.getInt(name)
            }
            session.feedback(feedback)
            return null
        }

        private fun swipe(step: JSONObject, case: String): ReplayLine {
            val ids = step.getJSONArray("video_ids").let { all -> LongArray(all.length()) { all.getLong(it) } }
            val told = step.getJSONArray("buffered_ms")
            val buffered = ids.indices.filter { told.getLong(it) >= 0 }.associate { ids[it] to told.getLong(it) }
            val device = DeviceState(step.getInt("network"), step.getInt("decoder"), buffered)
            session.setPosition(step.getLong("swipe_index"))
            val unlike = step.optJSONObject("ahead")?.let { ahead(it, device) } ?: ""
            val decision = session.decide(device)
            val golden = step.getLong("choice")
            val line = judge(step, case, ids, decision, golden, unlike)
            if (ids.contains(golden) && decision.considered.contains(golden)) session.show(session.instead(decision, golden))
            return line
        }

        private fun judge(
            step: JSONObject,
            case: String,
            ids: LongArray,
            decision: Choice,
            golden: Long,
            unlike: String,
        ): ReplayLine {
            if (decision.reason.isNotEmpty()) {
                return ReplayLine(case, Double.NaN, tolerance, "the model did not choose: ${decision.reason}")
            }
            if (!decision.considered.contentEquals(ids)) {
                return ReplayLine(case, Double.NaN, tolerance, "other candidates were left")
            }
            val scores = step.getJSONArray("scores")
            val expected = FloatArray(ids.size * model.tasks.size) { at ->
                scores.getJSONArray(at / model.tasks.size).getDouble(at % model.tasks.size).toFloat()
            }
            val values = FloatArray(ids.size) { step.getJSONArray("values").getDouble(it).toFloat() }
            val maxAbs = maxAbs(expected, decision.scores)
            val behind = decision.values.max() - decision.values[ids.indexOf(golden)]
            val problem = when {
                maxAbs > tolerance -> "scores differ"
                !Fusion.rankingsAgree(values, decision.values, valueTolerance(tolerance)) -> "ranking differs"
                behind > 2 * valueTolerance(tolerance) -> "another choice: ${decision.videoId} instead of $golden"
                else -> unlike
            }
            return ReplayLine(case, maxAbs, tolerance, problem)
        }

        /** What is wrong with the search: "" when it finds the golden list, or one that is worth no less. */
        private fun ahead(golden: JSONObject, device: DeviceState): String {
            val plan = BeamPlan(golden.getInt("beams"), golden.getInt("depth"), golden.getDouble("stability"), 1)
            val search = session.lookAhead(plan, device)
            if (search.problem.isNotEmpty()) return "no search: ${search.problem}"
            val ids = golden.getJSONArray("video_ids").let { all -> LongArray(all.length()) { all.getLong(it) } }
            val same = ids.contentEquals(search.videoIds)
            val behind = golden.getDouble("reward") - search.reward
            val places = ids.size
            val error = (tolerance + shipped("place")) / 4 // of a probability: a sigmoid's slope is at most 1/4
            val allowed = places * published.rewardSum * error * (1 + (places - 1) / 2.0)
            if ((if (same) Math.abs(behind) else behind) <= allowed) return ""
            return if (same) "the list's reward differs" else "another list: ${search.videoIds.contentToString()}"
        }
    }

    private fun shipped(vararg names: String): Double =
        published.graphs.filter { it.name in names }.maxOfOrNull { it.tolerance } ?: 0.0

    /** What an error in the logits can do to a fused value. */
    private fun valueTolerance(tolerance: Double): Double = tolerance * published.fusionSum / 4

    private fun maxAbs(expected: FloatArray, got: FloatArray): Double {
        if (expected.size != got.size) return Double.POSITIVE_INFINITY
        var largest = 0.0
        for (i in expected.indices) {
            val difference = Math.abs(expected[i].toDouble() - got[i])
            if (difference.isNaN()) return Double.POSITIVE_INFINITY
            largest = Math.max(largest, difference)
        }
        return largest
    }
}
