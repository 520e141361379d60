import groovy.json.JsonSlurper

buildscript {
    dependencies {
        classpath(libs.kotlin.gradle.plugin) // raises AGP's built-in Kotlin
    }
}

plugins {
    alias(libs.plugins.android.application) apply false
    alias(libs.plugins.android.library) apply false
    alias(libs.plugins.benchmark) apply false
    alias(libs.plugins.protobuf) apply false
}

/** A version directory as `kir publish` writes it, or the current one of a CDN directory. */
fun versionDirectory(given: File): File {
    val pointer = given.resolve("current.json")
    if (!pointer.isFile) return given
    val manifest = (JsonSlurper().parse(pointer) as Map<*, *>)["manifest"] as String
    return given.resolve(manifest).parentFile
}

// ./gradlew importModel -Pmodel=/path/to/cdn-or-version: the files that app and benchmark take as test assets.
tasks.register<Sync>("importModel") {
    description = "Copies a published model into the test assets: -Pmodel=DIRECTORY"
    group = "kir"
    val given = providers.gradleProperty("model").orNull
    val source = given?.let { versionDirectory(file(it)) }
    doFirst {
        require(given != null) { "importModel: name a published model: -Pmodel=DIRECTORY" }
        require(source!!.resolve("manifest.json").isFile) { "importModel: no manifest.json in $source" }
    }
    source?.let { from(it) { include("manifest.json", "*.tflite", "*.npz", "*.json") } }
    into(layout.projectDirectory.dir("model-assets/model"))
}
