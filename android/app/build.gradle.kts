plugins {
    alias(libs.plugins.android.application)
}

android {
    namespace = "kir.edge.app"
    compileSdk = libs.versions.compileSdk.get().toInt()

    defaultConfig {
        applicationId = "kir.edge.app"
        minSdk = libs.versions.minSdk.get().toInt()
        targetSdk = libs.versions.targetSdk.get().toInt()
        versionCode = 1
        versionName = "1"
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
        ndk {
            // The ABIs that LiteRT ships: phones, and emulators on PCs.
            abiFilters += listOf("arm64-v8a", "x86_64")
        }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }

    androidResources {
        // A compressed asset can't be mapped into memory, as CompiledModel.create(assets, …) does.
        noCompress += "tflite"
    }

    packaging {
        jniLibs {
            // Stored, aligned and mapped from the APK: what a device with 16 KiB pages needs. AGP aligns to 16 KiB.
            useLegacyPackaging = false
        }
    }

    sourceSets {
        named("androidTest") {
            assets.directories += rootDir.resolve("model-assets").path
        }
    }

    testOptions {
        managedDevices {
            localDevices {
                create("pixel2api30") {
                    device = "Pixel 2"
                    apiLevel = 30
                    systemImageSource = "aosp-atd"
                }
                create("pixel6api34") {
                    device = "Pixel 6"
                    apiLevel = 34
                    systemImageSource = "aosp-atd"
                }
            }
            groups {
                create("phones") {
                    targetDevices.add(localDevices["pixel2api30"])
                    targetDevices.add(localDevices["pixel6api34"])
                }
            }
        }
    }
}

dependencies {
    implementation(project(":model"))
    androidTestImplementation(libs.junit)
    androidTestImplementation(libs.test.runner)
    androidTestImplementation(libs.test.ext.junit)
}
