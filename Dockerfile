# The worker, for Docker, Kubernetes and LiveKit Cloud's builder. Settings come by the environment:
#   docker build -t support-agent . && docker run --env-file .env.local -v calls:/data support-agent
# It drains for up to DRAIN_TIMEOUT_S on SIGTERM: give it that (docker stop --time 630).

FROM python:3.12-slim AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
COPY requirements.txt .
RUN /venv/bin/pip install -r requirements.txt

FROM python:3.12-slim

# Build with --build-arg TURN_DETECTION=multilingual to have that model in the image.
ARG TURN_DETECTION=v1-mini

ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/app/models \
    TURN_DETECTION=$TURN_DETECTION \
    DATA_DIR=/data \
    HEALTH_HOST=0.0.0.0

RUN useradd --uid 10001 --no-create-home worker \
    && mkdir -p /app/models /data \
    && chown worker /app/models /data

COPY --from=build /venv /venv
WORKDIR /app
COPY . .
USER worker
RUN if [ "$TURN_DETECTION" = multilingual ]; then python agent.py download-files; fi

VOLUME /data
EXPOSE 8081
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('HEALTH_PORT', '8081')}/\", timeout=2)"]

CMD ["python", "agent.py", "start"]
