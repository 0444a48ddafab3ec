# The clone with everything installed, on a CPU or, with NVIDIA's container toolkit, a GPU:
#
#   docker build -t merit .
#   docker run --rm -it -v "$PWD/artifacts:/merit/artifacts" -v "$PWD/reports:/merit/reports" merit
#
# Another base image needs apt and Python 3.11 or newer:
#   docker build -t merit --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 .
ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends \
    ca-certificates gcc git libc6-dev make python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /merit
COPY . .
RUN make setup
ENV PATH=/merit/.venv/bin:$PATH
CMD ["make", "repro"]
