"""What more than one process needs: errors, configuration, messages, the bus and the engine."""
