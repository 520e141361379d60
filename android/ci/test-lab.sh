#!/usr/bin/env bash
# A published model's golden cases, and with --benchmark the microbenchmark, on a device of Firebase Test Lab.
#
#   ci/test-lab.sh MODEL_DIR DEVICE API [--benchmark]      # ci/test-lab.sh ~/cdn oriole 33
#
# DEVICE and API: of `gcloud firebase test android models list`. Take a physical one for times: a virtual one proves
# parity alone. Needs gcloud, logged in with a project that has Test Lab, Gradle 9.6 and the Android SDK. Not run here.
set -euo pipefail

if (($# < 3 || $# > 4)) || [[ $# -eq 4 && $4 != --benchmark ]]; then
  echo "usage: $0 MODEL_DIR DEVICE API [--benchmark]" >&2
  exit 2
fi
model=$(realpath "$1")
device=$2
api=$3
benchmark=${4:-}
cd "$(dirname "$0")/.."

gradle importModel -Pmodel="$model"
gradle :app:assembleDebug :app:assembleDebugAndroidTest
app=app/build/outputs/apk/debug/app-debug.apk
test=app/build/outputs/apk/androidTest/debug/app-debug-androidTest.apk
arguments=()
if [[ $benchmark == --benchmark ]]; then
  gradle :benchmark:assembleReleaseAndroidTest
  test=benchmark/build/outputs/apk/androidTest/release/benchmark-release-androidTest.apk
  # The numbers: Test Lab pulls this folder into the run's bucket.
  arguments=(
    --environment-variables "additionalTestOutputDir=/sdcard/Download,no-isolated-storage=true"
    --directories-to-pull /sdcard/Download
  )
fi

gcloud firebase test android run \
  --type instrumentation \
  --app "$app" \
  --test "$test" \
  --device "model=$device,version=$api" \
  --timeout 10m \
  "${arguments[@]+"${arguments[@]}"}"
