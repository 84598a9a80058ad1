"""What a job shows of itself while it runs: a bar or lines, a status file for `ipdiff watch`, the loss curve."""
