"""What a provider says of a bucket itself, asked through its own SDK; an optional extra for each."""
