# Built in two stages: the second holds Python, the pinned dependencies and the program, and nothing to build with.
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
COPY requirements.lock /src/
RUN python -m venv /opt/run-records/venv
RUN /opt/run-records/venv/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check --only-binary :all: --no-deps --require-hashes -r /src/requirements.lock
COPY app /opt/run-records/app
COPY migrations /opt/run-records/migrations
RUN printf '#!/bin/sh\nexec /opt/run-records/venv/bin/python -m app "$@"\n' > /opt/run-records/venv/bin/runrecords
RUN chmod 755 /opt/run-records/venv/bin/runrecords
RUN /opt/run-records/venv/bin/python -m compileall -q /opt/run-records/app
RUN mkdir -p /data

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/run-records /opt/run-records
COPY --from=build --chown=10001:10001 /data /data
ENV PATH=/opt/run-records/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/run-records \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RUNRECORDS_SERVER__HOST=0.0.0.0 \
    RUNRECORDS_STORE__PATH=/data/runrecords.db
# A number, so that whoever runs it can see that it is not root. Secrets come with the environment, never in a layer.
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["runrecords", "status", "--alive"]
ENTRYPOINT ["runrecords"]
CMD ["serve"]
