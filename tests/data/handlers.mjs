// The seven handlers of EmailEngine's documentation, as published, on events from a file; prints what they did.

import fs from "node:fs";

const done = [];
const said = [];
const console = { log: (line) => said.push(line) };

/** Records each call: `await db.emails.findOne(x)` is ["db.emails.findOne", x]. */
function recorder(name, answer) {
    return new Proxy(async (...given) => { done.push([name, ...given]); return answer; },
        { get: (_, key) => recorder(`${name}.${String(key)}`, ANSWERS[`${name}.${String(key)}`]) });
}

const ANSWERS = {
    "db.emails.findOne": { senderEmail: "sender@example.com", recipientEmail: "recipient@destination.com" },
    "db.outbox.findOne": { retryCount: 0, to: "recipient@destination.com", subject: "x", body: "y" },
};
const [db, monitoring, alerting, analytics, notificationService, auditLog, emailService, notifyAdmin, disableAccountSending] =
    ["db", "monitoring", "alerting", "analytics", "notificationService", "auditLog", "emailService", "notifyAdmin",
        "disableAccountSending"].map((name) => recorder(name));

const HANDLERS = { messageDeliveryError: [], messageFailed: [] };

HANDLERS.messageDeliveryError.push(async function handleMessageDeliveryError(event) {
    const { account, data } = event;
    console.log(`Delivery error for account ${account}`);
    console.log(` Queue ID: ${data.queueId}`);
    console.log(` Error: ${data.error}`);
    console.log(` Error Code: ${data.errorCode}`);
    console.log(` Attempt: ${data.job.attemptsMade}/${data.job.attempts}`);
    if (data.job.nextAttempt) {
        console.log(` Next retry: ${data.job.nextAttempt}`);
    } else {
        console.log(` No more retries scheduled`);
    }
    // Log to your monitoring system
    await monitoring.logDeliveryError({
            account,
            queueId: data.queueId,
            error: data.error,
            errorCode: data.errorCode,
            attempt: data.job.attemptsMade,
            timestamp: event.date
        });
});

HANDLERS.messageDeliveryError.push(async function handleMessageDeliveryError(event) {
    const { account, data } = event;
    // Alert if message has failed multiple times
    if (data.job.attemptsMade >= 5) {
        await alerting.send({
                severity: 'warning',
                title: 'Email delivery struggling',
                message: `Message ${data.queueId} has failed ${data.job.attemptsMade} times`,
                details: {
                    account,
                    error: data.error,
                    errorCode: data.errorCode,
                    recipients: data.envelope.to
                }
            });
    }
    // Track error patterns
    await analytics.trackError({
            type: 'smtp_delivery_error',
            account,
            errorCode: data.errorCode,
            smtpCode: data.smtpResponseCode
        });
});

HANDLERS.messageDeliveryError.push(async function handleMessageDeliveryError(event) {
    const { account, data } = event;
    // Authentication errors require immediate attention
    if (data.errorCode === 'EAUTH') {
        await notifyAdmin({
                title: 'SMTP Authentication Failed',
                message: `Account ${account} failed to authenticate with SMTP server`,
                action: 'Check SMTP credentials in account configuration'
            });
        // Optionally disable the account to prevent further failures
        await disableAccountSending(account);
    }
});

HANDLERS.messageFailed.push(async function handleMessageFailed(event) {
    const { account, data } = event;

    console.log(`Permanent delivery failure for account ${account}`);
    console.log(` Queue ID: ${data.queueId}`);
    console.log(` Message ID: ${data.messageId}`);
    console.log(` Error: ${data.error}`);

    // Update your database to mark the message as failed
    await db.emailLogs.update({
            queueId: data.queueId,
            status: 'failed',
            error: data.error,
            failedAt: event.date
        });
});

HANDLERS.messageFailed.push(async function handleMessageFailed(event) {
    const { account, data, date } = event;

    // Find the original email record
    const emailRecord = await db.emails.findOne({
            queueId: data.queueId
        });

    if (emailRecord && emailRecord.senderEmail) {
        // Send notification to the original sender
        await notificationService.sendEmail({
                to: emailRecord.senderEmail,
                subject: 'Email delivery failed',
                body: `Your email to ${emailRecord.recipientEmail} could not be delivered.\n\n` +
                `Error: ${data.error}\n\n` +
                `Message ID: ${data.messageId}`
            });
    }

    // Log the failure
    await auditLog.create({
            type: 'email_delivery_failed',
            account,
            queueId: data.queueId,
            error: data.error,
            timestamp: new Date(date)
        });
});

HANDLERS.messageFailed.push(async function handleMessageFailed(event) {
    const { account, data } = event;

    // Parse error type from the error message
    let errorType = 'unknown';
    if (data.error.includes('authentication')) {
        errorType = 'auth_failure';
    } else if (data.error.includes('timeout')) {
        errorType = 'timeout';
    } else if (data.error.includes('5.1.1')) {
        errorType = 'invalid_recipient';
    } else if (data.error.includes('5.7.')) {
        errorType = 'policy_rejection';
    }

    // Track for analytics
    await analytics.track({
            event: 'email_failed',
            properties: {
                account,
                errorType,
                queueId: data.queueId
            }
        });

    // Alert on authentication failures (may indicate credential issues)
    if (errorType === 'auth_failure') {
        await alerting.send({
                severity: 'high',
                title: 'SMTP Authentication Failure',
                message: `Account ${account} has authentication issues`,
                details: { error: data.error }
            });
    }
});

HANDLERS.messageFailed.push(async function handleMessageFailed(event) {
    const { account, data } = event;

    // Retrieve the original message content
    const originalMessage = await db.outbox.findOne({
            queueId: data.queueId
        });

    if (originalMessage && originalMessage.retryCount < 1) {
        // Try sending via backup SMTP server
        try {
            await emailService.sendViaBackup({
                    to: originalMessage.to,
                    subject: originalMessage.subject,
                    body: originalMessage.body,
                    originalQueueId: data.queueId
                });

            await db.outbox.update({
                    queueId: data.queueId,
                    retryCount: originalMessage.retryCount + 1,
                    lastRetryMethod: 'backup_smtp'
                });
        } catch (backupError) {
            console.error('Backup delivery also failed:', backupError);
        }
    }
});

for (const event of JSON.parse(fs.readFileSync(process.argv[2], "utf8"))) {
    for (const handle of HANDLERS[event.event] ?? []) {
        await handle(event);
    }
}
process.stdout.write(JSON.stringify({ done, said }));
