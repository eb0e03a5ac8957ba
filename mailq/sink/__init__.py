"""The SMTP server of `mailq sink`: it receives mail, and misbehaves on demand."""
