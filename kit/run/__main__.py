from kit.run.cli import main

main()
