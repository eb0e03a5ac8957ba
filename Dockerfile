# mailq as a container: the worker, and every other command of `mailq`.
#   docker build -t mailq .
#   docker run --rm -e MAILQ_RABBITMQ__URL=amqp://user:secret@broker/ -v mailq:/var/lib/mailq mailq
#
# The volume holds the journal, by which a worker knows what one before it has sent, and the counts of limits: all
# workers of a host share it.

FROM python:3.11-slim AS build
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY mailq /src/mailq
RUN python -m venv /opt/mailq && /opt/mailq/bin/pip install --no-cache-dir -c /src/constraints.txt /src

FROM python:3.11-slim
RUN useradd --system --uid 10001 --user-group --no-create-home mailq \
    && install --directory --owner=mailq --group=mailq --mode=0700 /var/lib/mailq
COPY --from=build /opt/mailq /opt/mailq
ENV PATH=/opt/mailq/bin:$PATH PYTHONUNBUFFERED=1
USER mailq
WORKDIR /var/lib/mailq
EXPOSE 9125 9126
STOPSIGNAL SIGTERM
ENTRYPOINT ["mailq"]
CMD ["run"]
