"""What experts do for an answer: the same prompt, answered or scored again with other experts or other evidence."""
