// A consumer that relies on the properties of EmailEngine's delivery events, as its users' handlers do.
//
// `node consumer.mjs FILE` reads an array of events and prints {actions, lines, absent}: the actions that the consumer
// would take, its log lines, and the properties that it needed and did not find. Each rule names what it reads.

import { readFileSync } from "node:fs";

const at = (event, path) => path.split(".").reduce((value, name) => value?.[name], event);

const REASONS = [
    ["login refused", /authentication|invalid login/i],
    ["no answer in time", /timeout|timed out/i],
    ["unknown recipient", /\b5\.1\.1\b/],
    ["policy", /\b5\.7\.\d/],
];

const RULES = [
    {
        on: "messageDeliveryError",
        reads: ["account", "date", "data.queueId", "data.error", "data.errorCode",
            "data.job.attemptsMade", "data.job.attempts", "data.job.nextAttempt"],
        lines: ([account, , queueId, error, code, made, planned, next]) => [
            `${queueId} of ${account}: ${code}, ${error}`,
            `attempt ${made} of ${planned}`,
            next === false ? "no further attempt" : `next attempt ${new Date(next).toISOString()}`,
        ],
        act: () => ["record-error"],
    },
    {
        on: "messageDeliveryError",
        reads: ["data.errorCode", "data.envelope.to"],
        act: ([code, to]) => to.map(() => `count-${code}`),
    },
    {
        on: "messageDeliveryError",
        reads: ["data.job.attemptsMade"],
        act: ([made]) => (made >= 5 ? ["warn-operator"] : []),
    },
    {
        on: "messageDeliveryError",
        reads: ["account", "data.errorCode"],
        act: ([, code]) => (code === "EAUTH" ? ["call-administrator", "stop-account"] : []),
    },
    {
        on: "messageFailed",
        reads: ["account", "date", "data.queueId", "data.messageId", "data.error"],
        lines: ([account, , queueId, messageId, error]) => [`${queueId} of ${account} failed: ${messageId}, ${error}`],
        act: () => ["mark-failed", "inform-sender"],
    },
    {
        on: "messageFailed",
        reads: ["data.error"],
        act: ([error]) => {
            const [reason] = REASONS.find(([, words]) => words.test(error)) ?? ["other"];
            return reason === "login refused" ? [`count ${reason}`, "warn-operator"] : [`count ${reason}`];
        },
    },
    {
        on: "messageFailed",
        reads: ["data.queueId"],
        act: () => ["send-by-second-provider"],
    },
];

const told = { actions: [], lines: [], absent: [] };
for (const event of JSON.parse(readFileSync(process.argv[2], "utf8"))) {
    for (const rule of RULES.filter(({ on }) => on === event.event)) {
        const values = rule.reads.map((path) => at(event, path));
        told.absent.push(...rule.reads.filter((_, place) => values[place] === undefined));
        told.lines.push(...(rule.lines?.(values) ?? []));
        told.actions.push(...rule.act(values));
    }
}
process.stdout.write(JSON.stringify(told));
