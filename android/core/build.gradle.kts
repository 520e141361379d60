plugins {
    `java-library`
}

java {
    sourceCompatibility = JavaVersion.VERSION_1_8
    targetCompatibility = JavaVersion.VERSION_1_8
}

// The check against Python's golden vectors; never part of the library.
val check: SourceSet = sourceSets.create("check") {
    compileClasspath += sourceSets["main"].output
    runtimeClasspath += sourceSets["main"].output
}

tasks.withType<JavaCompile>().configureEach {
    options.release = libs.versions.java.get().toInt()
    options.encoding = "UTF-8"
    options.compilerArgs.addAll(listOf("-Xlint:all,-options", "-Werror"))
}

// ./gradlew :core:checkVectors -Pvectors=/path/to/vectors (python -m benchmarks.jvm MODEL_DIR VECTORS)
tasks.register<JavaExec>("checkVectors") {
    description = "Holds the core against golden vectors: -Pvectors=DIRECTORY"
    group = "verification"
    classpath = check.runtimeClasspath
    mainClass = "kir.edge.core.VectorCheck"
    args(providers.gradleProperty("vectors").orNull ?: "vectors")
    workingDir = rootDir
}
