"""What one does with runs. Everything here is handed what it needs; nothing here changes what is learnt."""
