#!/usr/bin/env bash
# The participant's page in docs/tutorial.md: run the page's commands, then photograph what they wrote (needs chromium).
#   docs/tutorial_figures.sh [FOLDER]        a FOLDER that holds the results already is not computed again
set -euo pipefail
repository="$(cd "$(dirname "$0")/.." && pwd)"
folder="$(realpath -m "${1:-tutorial}")"
figures="$repository/docs/figures"
cd "$repository"
if [[ ! -f "$folder/tour/report/report.html" ]]; then
    python -m tests.docs.shell_blocks docs/tutorial.md "$folder"
fi

# photograph PAGE PICTURE WIDTH HEIGHT [TOP]: a page in headless Chromium, cut from TOP to HEIGHT.
photograph() {
    local profile
    profile="$(mktemp -d)"
    chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$profile" \
        --window-size="$3,$(($4 + ${5:-0}))" --screenshot="$profile/page.png" "file://$1" > /dev/null 2>&1
    python - "$profile/page.png" "$2" "${5:-0}" << 'PYTHON'
import sys
from PIL import Image

source, target, top = sys.argv[1:]
image = Image.open(source).convert("RGB")
image = image.crop((0, int(top), image.width, image.height))
image.quantize(128).save(target, optimize=True)
PYTHON
    rm -rf "$profile"
}

participant="$(find "$folder/tour/maps-real" -maxdepth 1 -name 'sub-*.html' | sort | sed -n 1p)"
photograph "$participant" "$figures/tutorial_participant.png" 1100 "${PARTICIPANT_HEIGHT:-1320}"
