"""Optimal control: one feedback expression brings a point to a target; its dynamics are hidden."""
