// Decide what becomes of each address: AMQP_URL=amqp://... node consumer.js [QUEUE [STOP_AFTER]]
import amqp from "amqplib";

function decision(job, last) {
  if (job.nextattempt) return `tried again at ${job.nextattempt.time}`; // in the queue retry
  if (last.dryrun) return last.result === "accepted" ? "would be taken" : "would be refused"; // nothing was sent
  if (last.category === "hard") return "remove the address"; // no such mailbox, no such domain
  // Given up: policy, out of time, a mistake in the job...: the address may be good.
  return last.result === "accepted" ? "delivered" : "given up";
}

const [queue = "results", stopAfter = "Infinity"] = process.argv.slice(2);
let left = Number(stopAfter);
const connection = await amqp.connect(process.env.AMQP_URL ?? "amqp://guest:guest@127.0.0.1/");
connection.on("close", () => (process.exitCode = left > 0 ? 1 : 0));
const channel = await connection.createChannel();
await channel.prefetch(100);
await channel.consume(queue, async (message) => {
  if (left <= 0) return; // not acknowledged: it is given to another consumer when the connection ends
  if (message === null) return connection.close(); // the queue was deleted
  const job = JSON.parse(message.content);
  const last = job.results.at(-1);
  console.log(job.recipient, last.attempt, last.code, last.status, decision(job, last));
  channel.ack(message); // after the work: what is not acknowledged comes again
  left -= 1;
  if (left > 0) return;
  await channel.close(); // after the acknowledgements, which closing the connection alone would drop
  await connection.close();
});
