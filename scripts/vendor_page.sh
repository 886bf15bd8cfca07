#!/usr/bin/env bash
# Rebuilds the renderer of the static page, momentum_gs/export/html/vendor/, from the npm packages named here. Needs
# node 20 or later and npm. Nobody edits the bundle by hand.
#
#   bash scripts/vendor_page.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SPARK=2.2.0 THREE=0.187.0 FFLATE=0.8.2 ESBUILD=0.28.2  # fflate is part of Spark's bundle; here for its licence alone.
target=$PWD/momentum_gs/export/html/vendor
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cd "$build"
npm init --yes >/dev/null
npm install --silent --no-audit --no-fund --ignore-scripts --save-exact \
    "@sparkjsdev/spark@$SPARK" "three@$THREE" "fflate@$FFLATE" "esbuild@$ESBUILD"
cat >entry.js <<'JS'
export { SparkRenderer, SplatMesh } from "@sparkjsdev/spark";
export {
  BufferGeometry, CanvasTexture, Color, Float32BufferAttribute, LineBasicMaterial, LineSegments, Group, Matrix4,
  PerspectiveCamera, Quaternion, Scene, Sprite, SpriteMaterial, SRGBColorSpace, Vector3, WebGLRenderer,
} from "three";
JS
# A classic script that sets one global name: pages opened from disk may not load modules.
node node_modules/esbuild/bin/esbuild entry.js --bundle --minify --format=iife --global-name=Renderer \
    --target=es2022 --legal-comments=none --log-level=warning --outfile=renderer.js

mkdir -p "$target"
gzip -9n <renderer.js >"$target/renderer.js.gz"
cp node_modules/@sparkjsdev/spark/LICENSE "$target/LICENSE.spark"
cp node_modules/three/LICENSE "$target/LICENSE.three"
cp node_modules/fflate/LICENSE "$target/LICENSE.fflate"
cat >"$target/VERSION.json" <<JSON
{
  "@sparkjsdev/spark": "$SPARK",
  "three": "$THREE",
  "fflate": "$FFLATE",
  "esbuild": "$ESBUILD",
  "sha256": "$(sha256sum "$target/renderer.js.gz" | cut -d' ' -f1)"
}
JSON
ls -l "$target"
