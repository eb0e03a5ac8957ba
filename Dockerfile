# mailq as a container: the worker, and every other command of `mailq`.
#   docker build -t mailq .
#   docker run --rm -e MAILQ_RABBITMQ__URL=amqp://user:secret@broker/ mailq

FROM python:3.11-slim AS build
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY mailq /src/mailq
RUN python -m venv /opt/mailq && /opt/mailq/bin/pip install --no-cache-dir -c /src/constraints.txt /src

FROM python:3.11-slim
RUN useradd --system --uid 10001 --user-group --no-create-home mailq
COPY --from=build /opt/mailq /opt/mailq
ENV PATH=/opt/mailq/bin:$PATH PYTHONUNBUFFERED=1
USER mailq
EXPOSE 9125
STOPSIGNAL SIGTERM
ENTRYPOINT ["mailq"]
CMD ["run"]
