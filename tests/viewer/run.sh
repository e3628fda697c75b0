#!/bin/sh
# Shows our objects in OHIF and checks what the viewer says about them. One command, from the repository root:
#   tests/viewer/run.sh [OUTPUT FOLDER]
# Needs node, npm, chromium, orthanc and orthanc-dicomweb (Debian packages). Fetches the prebuilt viewer and
# playwright-core from the npm registry into a temporary folder; screenshots stay in the output folder.
set -eu
cache="${QCT_VIEWER_CACHE:-${TMPDIR:-/tmp}/qct-viewer-cache}"
mkdir -p "$cache"
if [ ! -d "$cache/package/dist" ]; then
    (cd "$cache" && npm pack --silent @ohif/app@3.13.2 && tar xzf ohif-app-*.tgz)
fi
if [ ! -d "$cache/node_modules/playwright-core" ]; then
    (cd "$cache" && npm install --silent --no-audit --no-fund --ignore-scripts playwright-core)
fi
export QCT_OHIF_DIST="$cache/package/dist" QCT_PLAYWRIGHT="$cache/node_modules/playwright-core"
export QCT_VIEWER_OUT="${1:-${TMPDIR:-/tmp}/qct-viewer}"
"${PYTHON:-.venv/bin/python}" -m pytest -m viewer tests/viewer -v
echo "screenshots and facts.json: $QCT_VIEWER_OUT"
