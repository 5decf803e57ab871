"""Set-up and development tools. Nothing that runs in production imports this package."""
