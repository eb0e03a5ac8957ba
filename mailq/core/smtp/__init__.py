"""The facts of an SMTP conversation: replies, failures, certificates, transcript. Pure."""
