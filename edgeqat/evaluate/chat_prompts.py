"""A hundred prompts for `edgeqat eval --tasks chat`, of the kinds that people type: questions,
explanations, lists, letters, code, sums, stories, advice. Fixed, so that results compare.
"""

PROMPTS = tuple(
    line.strip()
    for line in """
What is the capital of Australia?
Who wrote the play Hamlet?
How many legs does a spider have?
What is the boiling point of water at sea level?
Which planet is closest to the sun?
What language is spoken in Brazil?
When did the Second World War end?
What is the largest ocean on Earth?
How far is the moon from the Earth?
What do bees make?
Explain how a bicycle stays upright.
Explain photosynthesis to a ten-year-old.
Why is the sky blue?
How does a refrigerator work?
Why do leaves change colour in autumn?
What causes the tides?
How do vaccines protect us?
Explain what inflation means in economics.
What is the difference between weather and climate?
How does the internet send a message from one computer to another?
List five healthy breakfast ideas.
List three ways to save water at home.
Name four instruments of a string quartet.
Give me five names for a grey cat.
List the steps to change a flat tyre.
Name three famous bridges and where they are.
Give five tips for a job interview.
List the ingredients of a simple pancake batter.
What should I pack for a weekend of hiking?
Name five animals that live in the desert.
Write a short letter thanking my neighbour for watering my plants.
Write an email asking my manager for a day off on Friday.
Write a polite reply to an invitation that I cannot accept.
Write a birthday message for my grandmother.
Write a short note to apologise for being late.
Write a product description for a wooden toy train.
Write a two-sentence summary of the story of Cinderella.
Write a notice that the library is closed on Monday.
Write a short review of a small Italian restaurant.
Write an introduction for a talk about recycling.
Write a Python function that reverses a string.
Write a Python function that checks whether a number is prime.
What does the SQL keyword JOIN do?
How do I read a text file line by line in Python?
Explain what a variable is in programming.
What is the difference between a list and a tuple in Python?
Write an HTML page with a heading and one paragraph.
What does HTTP status code 404 mean?
How do I undo the last commit in git?
Write a regular expression that matches a four-digit year.
What is 17 plus 26?
What is 12 times 8?
If a train travels 60 miles in one hour, how far does it travel in three hours?
A shirt costs 20 dollars and is reduced by 25 percent. What does it cost now?
I have 15 apples and give away 6. How many are left?
What is half of 250?
How many minutes are there in two and a half hours?
Sort these numbers from small to large: 9, 3, 14, 1.
What is the area of a rectangle of 4 by 6 metres?
What comes next: 2, 4, 8, 16?
Tell me a short story about a lighthouse keeper.
Tell me a story about a dog that learns to swim.
Write a poem of four lines about rain.
Write a haiku about the sea.
Tell me a joke about computers.
Continue this story: The door opened, and nobody was there.
Describe a busy market in the morning.
Invent a superhero whose power is patience.
Write a dialogue between a teacher and a curious pupil.
Describe a forest after snowfall.
How can I fall asleep more easily?
How do I learn a new language quickly?
What is a good way to start running?
How can I make new friends in a new city?
My plant has yellow leaves. What should I do?
How do I stay calm before an exam?
What can I cook with rice, eggs and carrots?
How do I remove a coffee stain from a shirt?
Should I buy a used or a new bicycle?
How can I spend less time on my phone?
Translate into French: Good morning, how are you?
Translate into Spanish: Where is the train station?
Translate into German: I would like a cup of tea.
What does the Latin phrase carpe diem mean?
Give me a synonym of happy.
Correct this sentence: She don't like apples.
Put this sentence into the past: I walk to school every day.
What is the plural of mouse?
Use the word bright in a sentence.
Rewrite this more politely: Give me the report now.
Is a tomato a fruit or a vegetable?
Which is heavier, a kilogram of feathers or a kilogram of iron?
What are the advantages of working from home?
Compare cats and dogs as pets.
What is the difference between a lake and a river?
Summarise in one sentence why exercise is good for us.
What would you do with a free afternoon?
Give three arguments for learning history.
What is machine learning, in two sentences?
Hello! What can you help me with?
""".strip().splitlines()
)
