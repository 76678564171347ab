"""What people read: tables in the terminal, later figures and pages."""
