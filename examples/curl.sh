#!/usr/bin/env bash
# A tour of the gateway with curl: describe, sample, score, encode, decode, stream.
#
#   latentserve serve --default-model mnist --gateway-port 8000
#   examples/curl.sh [http://localhost:8000] [FOLDER]
#
# Set LATENTSERVE_TOKEN if the server wants a token.
set -euo pipefail

server=${1:-http://localhost:8000}
folder=${2:-$(mktemp -d)}
model=$server/v1/models/mnist
call=(curl --silent --show-error --fail-with-body)
if [ -n "${LATENTSERVE_TOKEN:-}" ]; then
  call+=(--header "authorization: Bearer $LATENTSERVE_TOKEN")
fi
mkdir -p "$folder"

echo "== the model"
"${call[@]}" "$model" | head -c 300
echo

echo "== twenty sevens: $folder/sevens.png"
"${call[@]}" -o "$folder/sevens.png" "$model:sample?count=20&label=7&seed=7"

echo "== one of them, and how likely it is"
"${call[@]}" -o "$folder/seven.png" "$model:sample?count=1&label=7&seed=7"
"${call[@]}" --data-binary "@$folder/seven.png" -H 'content-type: image/png' "$model:score"
echo

echo "== from one digit to another: $folder/path.png"
"${call[@]}" -o "$folder/three.png" "$model:sample?count=1&label=3&seed=3"
"${call[@]}" -o "$folder/path.png" -F "image=@$folder/seven.png" -F "image=@$folder/three.png" \
  -F steps=10 -F method=spherical "$model:interpolate?columns=10"

echo "== its latent, and the digit decoded from that: $folder/again.png"
"${call[@]}" --data-binary "@$folder/seven.png" -H 'content-type: image/png' \
  -H 'accept: application/x-npy' -o "$folder/mean.npy" "$model:encode?output=mean"
"${call[@]}" --data-binary "@$folder/mean.npy" -H 'content-type: application/x-npy' \
  -H 'accept: image/png' -o "$folder/again.png" "$model:decode"

echo "== 2,000 digits, and their latents: $folder/means.npy"
"${call[@]}" -H 'accept: application/x-npy' -o "$folder/many.npy" \
  "$model:sample_stream?count=2000&seed=7&format=uint8"
"${call[@]}" --data-binary "@$folder/many.npy" -H 'content-type: application/x-npy' \
  -H 'accept: application/x-npy' -o "$folder/means.npy" "$model:encode_stream"

echo "== an error names the field, the value got and the value wanted"
"${call[@]}" "$model:sample?count=0" && exit 1
echo
