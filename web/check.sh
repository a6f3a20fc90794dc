#!/bin/sh
# Builds the page into a temporary folder and compares it with the built files that are committed.
set -eu
cd "$(dirname "$0")"
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
node_modules/.bin/tsc --noEmit
node_modules/.bin/vite build --logLevel warn --outDir "$built" --emptyOutDir
if ! diff -r "$built" ../src/sash/server/static; then
  echo 'error: src/sash/server/static differs from what web/ builds; run `npm run build` in web/ and commit it' >&2
  exit 1
fi
echo 'the built page matches its source'
