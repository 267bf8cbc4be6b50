"""MLflow: runs, metrics that are never lost, the registry. The only wing that knows mlflow.

Entry: `runs.open_mlflow_run`, `metric_log.MetricLog`. Imports config.
"""
