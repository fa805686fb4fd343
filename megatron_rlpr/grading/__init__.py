"""Is a response's final answer the reference answer, by rules: no model, and no text is ever executed.

tasks            prompt and response -> what is asked; result: what a grader is asked and answers
pool             many responses, each under a time limit, in processes that can be killed
dispatch         one response, by the grader of its data source
exact            a marked word or number, and GSM8K's
hendrycks        MATH with its own string equivalence
multiple_choice  the chosen option or its text; option_phrases: how responses name an option
prime_math       mathematics with a free answer; answer_text finds the answer in the response
math_grade       are two mathematical answers the same: math_normalize (forms), then math_equal (values)
symbolic         an expression as sympy, read without running it
format           are the tags as the prompt asks
"""
