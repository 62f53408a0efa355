# unlearnbench on CPUs, as a command:
#   docker build --build-arg TORCH_INDEX=<PyTorch's index of CPU builds> -t unlearnbench .
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/work" unlearnbench --model ./unlearned --quant none,4bit --tasks demo
# Without TORCH_INDEX torch's build for CUDA is installed, which is several GB larger.
FROM python:3.11-slim

ARG TORCH_INDEX=""
# Further precisions and lm-eval, by the names of pyproject.toml's extras: --build-arg EXTRAS=[hqq,lm-eval]
ARG EXTRAS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /src
COPY .ci/constraints.txt .ci/constraints.txt
RUN pip install --constraint .ci/constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY tasks tasks
COPY unlearnbench unlearnbench
RUN pip install --constraint .ci/constraints.txt ".$EXTRAS"

# Checkpoints are hostile input: none is opened as root. Any user has a home and a name.
ENV HOME=/tmp LOGNAME=unlearnbench
USER 1000
WORKDIR /work
ENTRYPOINT ["unlearnbench"]
CMD ["--help"]
