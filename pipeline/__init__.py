"""Both stages chained: recipes, evaluation, the demo."""
