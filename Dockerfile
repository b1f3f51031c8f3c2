# For machines with NVIDIA GPUs. It has not been built or run: no test of this repository has Docker or a GPU.
# tests/test_dockerfile.py compares it with pyproject.toml, constraints.txt and the files that it copies.
#
#   docker build --tag aggregate-po --build-arg USER_ID=$(id -u) .
#   docker run --gpus all --shm-size 16g --volume $PWD:/data aggregate-po \
#       fit --config /opt/aggregate_po/experiments/configs/one-gpu.yaml
#
# The working folder, here with train.jsonl and test.jsonl, is /data.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

# The version of vLLM whose build for processors the tests run; it is built for the pinned torch.
ARG VLLM=0.32.0
ARG USER_ID=1001

# A compiler and the headers of Python, with which Triton and vLLM compile kernels.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --non-unique --uid ${USER_ID} policy \
    && install --directory --owner policy /opt/aggregate_po /opt/environment /data

USER policy
WORKDIR /opt/aggregate_po
ENV PATH=/opt/environment/bin:$PATH PYTHONUNBUFFERED=1

COPY --chown=policy pyproject.toml README.md LICENSE MANIFEST.in constraints.txt ./
COPY --chown=policy aggregate_po aggregate_po
COPY --chown=policy lightning_modules lightning_modules
COPY --chown=policy experiments/configs experiments/configs
RUN python3 -m venv /opt/environment \
    && pip install --no-cache-dir --constraint constraints.txt \
        ".[datasets,diffusers,logging,lora,math,parquet,reasoning,vllm]" vllm==${VLLM}

WORKDIR /data
ENTRYPOINT ["aggregate-po"]
CMD ["--help"]
