"""Stand-ins for provider plugins, where the real ones cannot be downloaded.

`<name>.py` serves package `<name>`: set-up installs each as `pulumi-resource-<name>`, at the version that
the locked SDK asks for, into this checkout's own PULUMI_HOME. A stand-in has just the types that the
program uses.
"""
