#!/bin/sh
# Measures a packed folder on an Android device: pushes edgeqat-run and the folder, runs the bench,
# pulls its rows as JSON.
#
#   (cd kernels && cmake --preset android && cmake --build --preset android)
#   kernels/scripts/bench_adb.sh build/android/edgeqat-run FOLDER rows.json --threads 4
#
# What stands behind the JSON file goes to `edgeqat-run --bench`. --dry-run as the first word shows
# the commands of adb and runs none. ANDROID_SERIAL names one of several devices.
set -eu

PLACE=/data/local/tmp/edgeqat
FILES="config.json model.safetensors generation_config.json tokenizer.json tokenizer_config.json
chat_template.jinja"

fail() {
  echo "error: $1" >&2
  exit "${2:-2}"
}

dry=
if [ "${1:-}" = --dry-run ]; then
  dry=1
  shift
fi
[ $# -ge 3 ] || fail "usage: bench_adb.sh [--dry-run] EDGEQAT-RUN FOLDER JSON [options of --bench]"
binary=$1 folder=$2 json=$3
shift 3
[ -f "$binary" ] || fail "'$binary': there is no such file; build edgeqat-run for Android first"
[ -f "$folder/model.safetensors" ] || fail "folder: '$folder' holds no model.safetensors; name a packed folder"
for word in "$@"; do
  case $word in
    *[!A-Za-z0-9@._-]*) fail "'$word': letters, digits and @._- alone are options of --bench" ;;
  esac
done

adb() {
  if [ "$dry" ]; then
    echo "adb $*"
  else
    command adb "$@"
  fi
}

if [ ! "$dry" ]; then
  command -v adb > /dev/null || fail "adb is missing; install Android's platform tools"
  state=$(command adb get-state 2> /dev/null) || state=none
  [ "$state" = device ] || fail "adb: no device answers ($state); connect one, or set ANDROID_SERIAL" 1
fi
clean() {
  adb shell "rm -rf $PLACE"
}
trap clean EXIT
clean
adb shell "mkdir -p $PLACE/model"
adb push "$binary" "$PLACE/edgeqat-run"
for file in $FILES; do
  [ -f "$folder/$file" ] && adb push "$folder/$file" "$PLACE/model/$file"
done
run="cd $PLACE && chmod 755 edgeqat-run && ./edgeqat-run model --bench --json $* > rows.json"
adb shell "$run" || fail "edgeqat-run failed on the device; what it said stands above" 1
adb pull "$PLACE/rows.json" "$json.part"
[ "$dry" ] || mv "$json.part" "$json"
[ "$dry" ] || echo "wrote $json"
