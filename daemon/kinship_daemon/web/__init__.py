"""What is looked at: the dashboard, its JSON twins, /metrics, the webhook, and the report."""
