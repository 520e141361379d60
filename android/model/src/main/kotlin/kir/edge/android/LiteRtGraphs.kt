package kir.edge.android

import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.Environment
import com.google.ai.edge.litert.TensorBuffer
import java.io.Closeable
import kir.edge.core.Graphs
import kir.edge.core.KirException

/**
 * A published model's graphs on LiteRT's CompiledModel, on the CPU: buffers are made once and bound by tensor name, as
 * the file's signature has it. One thread by default: these graphs are too small for two. Not thread-safe.
 */
class LiteRtGraphs(private val published: PublishedModel, private val threads: Int = 1) : Graphs, Closeable {
    private class Bound(val contract: GraphContract, val compiled: CompiledModel) {
        val inputs: Map<String, TensorBuffer> =
            contract.inputs.associate { it.name to compiled.createInputBuffer(it.name) }
        val outputs: Map<String, TensorBuffer> =
            contract.outputs.associate { it.name to compiled.createOutputBuffer(it.name) }

        fun close() {
            inputs.values.forEach { it.close() }
            outputs.values.forEach { it.close() }
            compiled.close()
        }
    }

    private val environment = Environment.create()
    private val bound = HashMap<String, Bound>()

    /** Compile a graph now, so that a broken file is refused here and not at a swipe. Raises KirException or LiteRtException. */
    fun load(name: String, bucket: String) {
        bind(name, bucket)
    }

    private fun bind(name: String, bucket: String): Bound = bound.getOrPut("$name/$bucket") {
        val contract = published.graph(name, bucket)
        published.read(contract.file) // what is compiled below is what was published
        val options = CompiledModel.Options(Accelerator.CPU)
        options.cpuOptions = CompiledModel.CpuOptions(numThreads = threads)
        Bound(contract, CompiledModel.create(published.path(contract.file).absolutePath, options, environment))
    }

    override fun run(name: String, bucket: String, inputs: Map<String, FloatArray>): Map<String, FloatArray> {
        val graph = bind(name, bucket)
        for (tensor in graph.contract.inputs) {
            val given = inputs[tensor.name]
            if (given == null || given.size != tensor.size) {
                throw KirException("a tensor is absent or of another size", "$name/$bucket ${tensor.name}", given?.size, tensor.size, null)
            }
            graph.inputs.getValue(tensor.name).writeFloat(given)
        }
        graph.compiled.run(graph.inputs, graph.outputs)
        return graph.outputs.mapValues { (_, buffer) -> buffer.readFloat() }
    }

    override fun close() {
        bound.values.forEach { it.close() }
        bound.clear()
        environment.close()
    }
}
