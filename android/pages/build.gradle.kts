plugins {
    `java-library`
    alias(libs.plugins.protobuf)
}

java {
    sourceCompatibility = JavaVersion.VERSION_1_8
    targetCompatibility = JavaVersion.VERSION_1_8
}

// The one page.proto of the repository: server, Python edge and app read the same file.
sourceSets {
    main {
        proto {
            srcDir(rootDir.resolve("../contract/proto"))
            include("kir/v1/page.proto")
        }
    }
}

protobuf {
    protoc {
        artifact = libs.protoc.get().toString()
    }
    generateProtoTasks {
        all().configureEach {
            builtins {
                named("java") {
                    option("lite")
                }
            }
        }
    }
}

dependencies {
    api(project(":core"))
    implementation(libs.protobuf.javalite)
}
