"""An attempt: one job in, exactly one result out."""
