"""What no stack may do without saying so; run by `pulumi preview --policy-pack policy`."""
