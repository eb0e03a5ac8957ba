"""RabbitMQ over AMQP 0-9-1, spoken by ourselves: an asyncio.Protocol with pamqp's codec for rare frames.

`broker` is the door; nothing outside needs another module here except `topology.delay_queue`.
"""
