// Publish one job for each recipient: AMQP_URL=amqp://... node producer.js jo@example.test ann@example.test
import { randomUUID } from "node:crypto";
import amqp from "amqplib";

const base64 = (text) => Buffer.from(text, "utf8").toString("base64");

const job = (recipient) => ({
  envelope: "bounces@example.com",
  recipient,
  mime: [
    `From: =?utf-8?B?${base64("Café")}?= <news@example.com>`, // encoded words: a header is ASCII
    `To: ${recipient}`,
    `Subject: =?utf-8?B?${base64("Grüße")}?=`,
    `Message-ID: <${randomUUID()}@example.com>`,
    `Date: ${new Date().toUTCString().replace("GMT", "+0000")}`,
    "MIME-Version: 1.0",
    "Content-Type: text/plain; charset=utf-8",
    "Content-Transfer-Encoding: base64", // 7 bit, which every receiver takes; at most 76 characters a line
    "",
    ...base64("Hello, and Grüße!\r\n").match(/.{1,76}/g),
    "",
  ].join("\r\n"),
});

const connection = await amqp.connect(process.env.AMQP_URL ?? "amqp://guest:guest@127.0.0.1/");
const channel = await connection.createConfirmChannel();
const returned = new Set(); // ids of what no queue has taken; the broker says so before it confirms
channel.on("return", (message) => returned.add(message.properties.messageId));
for (const recipient of process.argv.slice(2)) {
  const messageId = randomUUID();
  const options = { messageId, persistent: true, mandatory: true, contentType: "application/json" };
  channel.publish("", "outbox", Buffer.from(JSON.stringify(job(recipient))), options);
  await channel.waitForConfirms(); // the broker has it on disk; wait once for many jobs for more speed
  if (returned.has(messageId)) throw new Error(`no queue has taken the job for ${recipient}: is there an outbox?`);
  console.log("published", messageId, recipient);
}
await connection.close();
