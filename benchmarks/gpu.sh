#!/usr/bin/env bash
# What this project does on an NVIDIA GPU, in half an hour: docs/gpu.md.
#   bash benchmarks/gpu.sh [FOLDER]                  everything goes into FOLDER (gpu-report/ if none is named)
#   bash benchmarks/gpu.sh FOLDER PART ...           some parts only
#   TOTAL=600 bash benchmarks/gpu.sh                 in 10 minutes; the last part gets what the others leave
#   GGUF=FILE bash benchmarks/gpu.sh                 the last part trains SmolLM2-135M-Instruct from this file
#   GGUF=FILE RUN=FOLDER/run.tar.gz bash benchmarks/gpu.sh OTHER     ... and goes on with that run
#   REHEARSAL=1 bash benchmarks/gpu.sh [FOLDER]      every part at tiny sizes on a CPU
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu/run.py" "$@"
