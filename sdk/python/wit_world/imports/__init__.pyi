# Generated from sdk/wit; do not edit.
